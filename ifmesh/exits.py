"""The exit codes of every ifmesh process, for people, supervisors and scripts."""

OK = 0
FAILURE = 1  # a bug, or a failing disk: told loudly
USAGE = 2
CONFIGURATION = 3  # started again as it is, it ends the same way
UNREACHABLE = 4  # no mesh answers, or it is not ready
JOB_FAILED = 5
SOME_FAILED = 6  # some of several jobs
STALLED = 70  # a worker killed because it did not advance: a death of its own making, not a kill from outside
AT_ONCE = 75  # told to stop a second time: it left things undone
INTERRUPTED = 130  # Ctrl-C
