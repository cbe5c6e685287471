"""Personalised product search under evaluation: queries made of item text, one protocol, and the systems a shop would run.

`queries` makes the questions, `cases` puts them beside a log, `words` cuts text for an inverted index, `lexical`, `dense`
and `learned` are the baselines, `own` is our model, `compare` turns lists into figures and paired differences.
"""
