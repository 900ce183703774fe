"""The local platform: this machine as training node and serving host."""
