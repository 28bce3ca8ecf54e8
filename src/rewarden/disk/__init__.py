"""Writing that loses nothing: whole files, and folders that are known to be ours."""
