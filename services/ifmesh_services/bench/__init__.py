"""What `ifmesh bench` measures of the stages, beside diffusers' own pipelines in the same process."""
