"""What imagen does: the use cases. Each file is one step on the way of a request.

gateway.py      the way of one request, from wish to pictures; every face calls it
errand.py       one prediction on its way, shared by those who work on it
finish.py       from wherever a prediction stands to its end: bought or found, followed, settled, delivered
buy.py          one create, never repeated when the first may have arrived
adopt.py        finds what a lost answer bought
follow.py       looks again when it is due, until the end
sight.py        takes note of what upstream said: the one place where a prediction changes
endings.py      what an end means for the one who asked
deliver.py      fetches, checks and keeps the pictures
bookkeep.py     writes the ledger, now or later
usage.py        reads it
"""
