"""Serving of bids: ledger, campaigns, bid path, control loop, explanations. No HTTP here, no torch, nothing that imports upwards.

money.py        decimal text to integer micros and back; nothing in between is a float
journal.py      the append-only log: frames, group commit, recovery of a torn tail
ledger.py       reservations, notices, budgets: the state machine on top of the journal
campaigns.py    what an advertiser sets: budget, limit, flight, creatives, targeting
openrtb.py      OpenRTB 2.6: requests in, replies out, reason codes
pcvr.py         the predicted conversion probability of a campaign in a segment
landscape.py    win probability from notices, bid shading for first-price auctions, response curves
engine.py       the bid path: request -> campaign -> bid -> reservation -> reply
fallback.py     safe pacing, the controller that is always there
worker.py       a controller in a process of its own, with a deadline
control.py      the control path: one observation per tick for all campaigns, action limits, fallback, shadows
explain.py      why a campaign bids what it bids
service.py      all of it behind one object
"""
