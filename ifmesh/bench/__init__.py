"""`ifmesh bench`: what a mesh costs, and what it brings, in figures that say how they were made.

head        what every report begins with: machine, versions, configuration, command
statistics  percentiles, rates, intervals (pure)
stages      stages that do nothing, wait or compute, with tensors of the true sizes
meshes      a mesh for one measurement; apart: its processes as if each had a host of its own
orders      what a client process is told and tells, in JSON (pure); agent: that process; clients: many of them
crews       many of them on other hosts; remote, hosted: the near and the far end of the connection to one
schedules   when requests are due; merge: what clients saw, as one (pure)
floor       a bare chain of processes; taken: what a closed loop has measured (pure); durable: what the disk asks for a write
crossing    `bench mesh`: all of these in turns
links       `bench links`: every way of a running mesh, probed
load        `bench load`; sweep, compare: many of them (pure)
notebook    `bench baseline --notebook`: diffusers alone, loading, using, freeing, beside a mesh; sides: what is told of both; peaks: RAM
verify      `ifmesh verify`: cases by both of them; difference: of two tensors (pure)
baseline    diffusers in one process, beside a mesh; rivalry, peers: other systems; lines: a child that is asked in JSON
tables      a report in words and numbers (pure); plots: in pictures; page: both in one file; markdown: to be committed (pure)
"""
