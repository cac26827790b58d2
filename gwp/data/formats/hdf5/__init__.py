"""Episodes in HDF5 files: ALOHA, robomimic, LIBERO."""
