"""Why better cross-lingual alignment of an encoder can fail to give better cross-lingual transfer.

`xlprobe` is the home of the second study beside `mechedit`: XLM-R encoders, explicitly aligned on pairs of
languages (by word, by sentence, by masked language modelling), fine-tuned for a token-level or a
sentence-level task, and measured by embedding distances, gradient similarity and gradient magnitude.

Source: "Why Better Cross-Lingual Alignment Fails for Better Cross-Lingual Transfer: Case of Encoders",
arXiv 2603.18863.

This release carries no code of it yet: the package holds the name, stands on `experiments` and `reports` as
`mechedit` does, and never meets `mechedit`.
"""
