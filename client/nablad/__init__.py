"""nablad: gradients of losses that contain derivatives, computed by a server."""
