"""vgpu doctor container: is the quota in force now, by what, and how is that known?"""
