"""What the scripts are made of. Flat; the listing below is the map.

Text half, which imports neither torch nor vllm:
    runs.py         command line, one-line errors, run cards, progress
    records.py      a row of each file: read and checked at the door, written whole
    prompts.py      text -> prompt, and reply -> text; format and parse are neighbours
    generation.py   prompts -> texts: vllm | hf | openai | simulated, behind one function
    templates.py    a row -> prompt text and ids, one object per template, in training and inference alike
    training_data.py  the rows that train.py learns from, in all their forms
    journal.py      finished requests on disk: crash, resume, exactly once
    rouge.py        ROUGE-L, and a pool of texts that tells near-duplicates
    filters.py      is this one text worth keeping?  One predicate a rule, each with a reason
    ranking.py      many texts for one prompt: who beats whom, may it be a pair

Tensor half, which imports torch and never vllm:
    batches.py      ids -> samples, collators, packing, micro-batches of like length
    losses.py       the one way to a log-probability, and the losses made of it
    reward_model.py load, score(texts)
    trainers.py     HF Trainer whose step functions call losses.py
    verification.py is what was saved what was trained?
    decoding.py     the hf engine: batched sampling with a shared prefix
"""
