"""`ifmesh chaos`: a mesh of real processes under a seeded weather of faults, and a proof that nobody's request suffered from it.

asks       what the clients are to ask: one seed, one list
schedule   what is done to the mesh, and when: one seed, one list
history    what was seen and done, line by line, as it happens
checker    the proof, from the history alone (pure)
figures    how long things took, from the history alone (pure)
oracle     what a request must give: toy stages, in this process, without a mesh
stages     toy stages that write down what they run
gates      proxies between the processes, which can be closed
strangers  bad bytes
agents     client processes
weather    carries the schedule out
run        all of it together
"""
