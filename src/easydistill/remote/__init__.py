"""Runs in object stores: a run works in a directory of this machine, and a mirror carries it to the store and back.

    store.py    objects through fsspec: what a store can do, its errors in one form
    history.py  what the store holds, as a chain of commits, each of which is one object
    local.py    the files of the directory: which are sent, which grow, which mark others as complete
    fetch.py    from the store to a directory, each byte checked
    lock.py     who works on the run
    patience.py trying again while a store fails
    mirror.py   from the directory to the store while the run works; tails.py, uploads.py, compaction.py: its parts

An object store cannot append, rename or change several objects at once. So what grows is sent in pieces, and the state
of a run is what its last commit says: an upload that was cut off is in no commit, and therefore not there. A commit is
created under the next number only if nobody else has created it, so two commands cannot both go on with one run.
"""
