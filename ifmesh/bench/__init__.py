"""What a mesh is worth: measured on the real client, over the real links."""
