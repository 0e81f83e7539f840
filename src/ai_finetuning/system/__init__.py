"""The machine: devices, cores, folders, the hub that may not answer."""
