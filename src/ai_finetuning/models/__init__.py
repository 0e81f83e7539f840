from .log_filters import quiet_backends

# Where torchao is installed, transformers imports it, and it complains while it is imported: before any module here is.
quiet_backends()
