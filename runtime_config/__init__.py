"""Configuration files: the engines' own, edited without disturbing anybody's lines, and the admin's policy."""
