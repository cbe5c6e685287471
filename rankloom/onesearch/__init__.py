"""OneSearch (arXiv 2509.03236) as an encoder-decoder of its own, beside the lazy decoder that serves this package's searches.

It stands here for comparison: the paper's method with every part behind a switch. From the bottom: `vocabulary` words and
codes as tokens; `corpus` what is known of items and queries; `contexts` who asked what after which history; `prompts` what
the network reads; `stages` and `fitting` the three stages of supervised training; `feedback` levels and calibrated counts;
`reward_model` the three towers; `pairs` and `pars` preference training; `generating` decoding; `model` the whole, with its
folder. The networks are `models/encoder_decoder.py`, `qformer.py`, `behaviour_uid.py` and `reward_towers.py`, the list-wise
loss is `training/preference.py`.
"""
