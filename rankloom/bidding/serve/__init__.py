"""Serving of bids: ledger, campaigns, bid path, control loop, explanations. No HTTP here, no torch, nothing that imports upwards.

money.py        decimal text to integer micros and back; nothing in between is a float

The ledger
journal.py      the append-only log: frames, group commit, recovery of a torn tail
records.py      what the log says: kinds of records and their bytes
accounts.py     an account: one campaign on one day, its balances and ticks
bidtable.py     the bids that are remembered, in columns
books.py        what each record does to the balances: the state machine
booksfile.py    the books as bytes, for snapshots and comparisons
notices.py      which notices have an effect
segments.py     the files: log segments, snapshots, recovery
groupcommit.py  the thread that syncs for everybody who waits
audit.py        counts every account again from its bids
ledger.py       reservations, notices, budgets: calls become records

The bid path
campaigns.py    what an advertiser sets: budget, limit, flight, creatives, targeting
openrtb.py      OpenRTB 2.6: requests in, replies out, reason codes
pcvr.py         the predicted conversion probability of a campaign in a segment
landscape.py    win probability from notices, bid shading for first-price auctions, response curves
arms.py         account holders and which requests are theirs
filters.py      what keeps a campaign from bidding
slots.py        kinds of slots: who fits, ranked once for each tick
pricing.py      what to bid: value, shading, floors, deals
lessons.py      what notices teach about prices
marks.py        ids of bids, and the marks that prove them
engine.py       request -> campaign -> bid -> reservation -> reply; notices

The control path
fallback.py     safe pacing, the controller that is always there
worker.py       a controller in a process of its own, with a deadline
control.py      one observation per tick for all campaigns, action limits, fallback, shadows
explain.py      why a campaign bids what it bids

service.py      all of it behind one object
"""
