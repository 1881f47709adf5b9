"""A running gateway, asked over HTTP in place of the parts of this process.

connection.py    Connection           one exchange: where it is, which key is shown, what its answer means
refusals.py      read_refusal         an error of the gateway as the same error here
generate.py      RemoteGateway        wishes are translated here and made there; their pictures land here
semaphores.py    RemoteSemaphores, RemoteLeases
keys.py          RemoteKeys

Nothing is written down here: predictions and the ledger are the gateway's.
"""
