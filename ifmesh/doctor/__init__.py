"""`ifmesh doctor`: every hop of the mesh, tried for real; what is broken is named, with its remedy.

finding    what is told of one hop
door       from here to the coordinator: address, port, handshake, version
staff      the workers, and what they load
ways       from service to service, as the mesh's own bags go (`survey`)
"""
