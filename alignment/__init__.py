"""What the scripts are made of; the listing below is the map.

The contracts and the text half, which import neither torch nor vllm nor a model of transformers:
    command_line.py  argument types, one-line errors, who speaks under torchrun, progress, tables
    secrecy.py       keys taken out of what is said and written
    run_cards.py     what an output was made of: may I write here, is it done, where does a training go on
    records.py       rows in all their forms and formats: read and checked at the door, written whole
    journal.py       finished requests on disk: crash, resume, exactly once
    pretrained.py    models and tokenizers from a folder or the hub, and what identifies one
    adapters.py      LoRA: how it is added, the base that it belongs to, and how that is quantised
    templates.py     a row -> prompt text, ids and stop strings, one object per template, for training and inference
    few_shot.py      ALMoST's few-shot prompts, and reply -> text; format and parse are neighbours
    training_data.py the rows that train.py learns from, in all their forms
    generation.py    Request, Reply, Sampling, Engine, generate(): the contract that engines/ carries out
    filters.py       is this one text worth keeping?  One predicate a rule, each with a reason
    rouge.py         ROUGE-L, and a pool of texts that tells near-duplicates
    ranking.py       many texts for one prompt: who beats whom, may it be a pair
    judging.py       judgments: their rows, the prompts that ask for them, and the reading of replies
    intervals.py     how sure a number is: Wilson, bootstrap, and the one way to print both
    pages.py         the one way to a self-contained, escaped HTML page

engines/, what runs models: `engine_from` and its flags in __init__.py;
    vllm.py  hf.py  openai.py  simulated.py
    prompts.py       a request -> token ids, by the model's own tokenizer and chat template
    answers.py       whatever a server sends -> a reply
    schemas.py       values that follow a JSON schema, for the simulated writer
    decoding.py      a causal model in hand, ids in and ids out: shared prefix, batch, cache
    sampling.py      logits -> tokens
    vllm_sampling.py in vLLM's own processes: sampling on a CPU without sorting the vocabulary

training/, what imports torch to learn or to score:
    unpadding.py     a padded batch through a model at the cost of its distinct tokens
    batches.py       ids -> samples, collators, packing, micro-batches of like length
    logps.py         a model and a batch -> log-probabilities, no vocabulary-wide tensor held
    losses.py        the papers' equations, pure functions
    trainers.py      HF Trainer whose step functions call losses.py
    history.py       what a training run shows and leaves: bar, history.jsonl, history.png
    reward_model.py  load, score(texts)
    references.py    DPO's reference log-probabilities, computed once
    saving.py        written, loaded again by a fresh process, and the same: one call for every script that saves
    static_hhh.py    static HHH: its rows, what a policy is asked, and letters as answers
    cut_lines.py     CUT: rows with judgments -> lines -> batches; how much the judgment has to do with each token
    cut_trainer.py   CUT: the training step, and the Trainer that takes it
"""
