"""vgpu doctor bundle: what somebody else needs to help, without what nobody else may see."""
