"""`ifmesh bench`: what a mesh costs, and what it brings, in figures that say how they were made.

head        what every report begins with: machine, versions, configuration, command
statistics  percentiles, means, intervals (pure)
"""
