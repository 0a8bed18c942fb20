"""What the scripts are made of. Flat; the listing below is the map.

Text half, which imports neither torch nor vllm:
    runs.py          command line, one-line errors, run cards, progress
    records.py       a row of each file: read and checked at the door, written whole
    prompts.py       ALMoST's few-shot prompts, and reply -> text; format and parse are neighbours
    templates.py     a row -> prompt text and ids, one object per template, in training and inference alike
    rendering.py     a row -> the text that an engine continues, and where it should stop
    generation.py    prompts -> texts: vllm | hf | openai | simulated, behind one function
    checkpoints.py   models and tokenizers from a folder or the hub
    journal.py       finished requests on disk: crash, resume, exactly once
    rouge.py         ROUGE-L, and a pool of texts that tells near-duplicates
    filters.py       is this one text worth keeping?  One predicate a rule, each with a reason
    ranking.py       many texts for one prompt: who beats whom, may it be a pair
    judging.py       judgments: their rows, the prompts that ask for them, and the reading of replies
    training_data.py the rows that train.py learns from, in all their forms

Tensor half, which imports torch and never vllm:
    decoding.py      the hf engine: batched sampling with a shared prefix
    unpadding.py     a padded batch through a model at the cost of its distinct tokens
    batches.py       ids -> samples, collators, packing, micro-batches of like length
    losses.py        the one way to a log-probability, and the losses made of it
    trainers.py      HF Trainer whose step functions call losses.py
    history.py       what a training run shows and leaves: bar, history.jsonl, history.png
    reward_model.py  load, score(texts)
    verification.py  is what was saved what was trained?
    judged.py        CUT: rows with judgments -> lines -> batches; how much the judgment has to do with each token
    unlikelihood.py  CUT: the training step, and the Trainer that takes it
    adapters.py      LoRA adapters, the base each belongs to, and how it is quantised

In vLLM's own processes:
    vllm_sampling.py sampling on a CPU without sorting the vocabulary
"""
