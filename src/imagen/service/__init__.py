"""What imagen does: the use cases. Each file is one step on the way of a request.

gateway.py      the way of one request, from wish to pictures
buy.py          one create, never repeated when the first may have arrived
adopt.py        finds what a lost answer bought
follow.py       looks again when it is due, until the end
deliver.py      fetches, checks and keeps the pictures
bookkeep.py     writes the ledger, now or later
"""
