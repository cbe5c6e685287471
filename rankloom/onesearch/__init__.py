"""OneSearch (arXiv 2509.03236) as an encoder-decoder of its own, beside the lazy decoder that serves this package's searches.

It stands here for comparison: the paper's method with every part behind a switch. From the bottom: `vocabulary` words and
codes as tokens; `corpus` what is known of items and queries; `contexts` who asked what after which history; `prompts` what
the network reads; `query_ids` the seam to whatever encodes queries; `stages` and `fitting` the three stages of supervised
training; `scoring` how probable an item is; `negatives` what was not taken, with the rewards of pairs; `profiles` what people
say of themselves; `lexical` and `statistics` what words and the log say of pairs; `reward_model` the three towers at work; `pars` preference training; `generating` decoding; `model` the whole, and `folder` its files. The
networks are `models/encoder_decoder.py`, `qformer.py`, `behaviour_uid.py` and `reward_towers.py`; the list-wise loss is
`training/preference.py`, levels and calibrated counts `training/feedback.py`.

Left out: text and attributes of a language model (words start from the tokenizer's vectors instead), and the daily and weekly
schedule. KHQE is the tokenizer's (`rankloom/semantic/khqe`).
"""
