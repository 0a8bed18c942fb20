"""What the scripts are made of; the listing below is the map.

The contracts and the text half, which import neither torch nor vllm nor a model of transformers:
    command_line.py  argument types, one-line errors, who speaks under torchrun, progress, tables
    flag_values.py   values that no flag of any script can have
    config_files.py  a YAML file of flags -> the words of a command line
    secrecy.py       keys taken out of what is said and written
    run_cards.py     what an output was made of: may I write here, is it done, where does a training go on
    replays.py       a finished output again: hashed, and its stage run out of its journal
    outputs.py       may a run write here: writable, nothing that it reads, held by no other process
    records.py       rows in all their forms and formats: read and checked at the door, written whole
    json_texts.py    JSON in one go, or a list of any size value by value; where its faults are
    parquet.py       tables in Parquet, batch by batch
    hub.py           data sets of the hub, or of its cache here
    hashes.py        files, and rows of the hub, known by their contents
    journal.py       finished requests on disk: crash, resume, exactly once; texts stay there
    pretrained.py    models and tokenizers from a folder or the hub, and what identifies one
    adapters.py      LoRA: how it is added, the base that it belongs to, and how that is quantised
    model_cards.py   README.md of a model's folder: what it is, made by what, of what, and what was measured
    template_trial.py  a chat template of a model's own is tried under a bound before it is used
    templates.py     a row -> prompt text, ids and stop strings, one object per template, for training and inference
    token_ids.py     texts -> ids: what a tokenizer adds, what goes on from a text, and data that spell control tokens
    few_shot.py      ALMoST's few-shot prompts, and reply -> text; format and parse are neighbours
    training_data.py the rows that train.py learns from, in all their forms
    other_forms.py   rows as other tools write them -> as these read them
    choices.py       rows in which some responses are better: any pairs, static HHH, DSP, RewardBench 1 and 2
    reward_measures.py  what a reward model's scores of them say: accuracy, calibration, what length explains
    static_hhh.py    static HHH: its rows, what a policy is asked
    truthfulqa.py    TruthfulQA: its rows, what a policy is asked, MC1 and MC2
    limits.py        how many tokens and hours a run may take: the flags, and the engine that stops there
    planning.py      what a stage would take, before it runs: its rehearsal, and the table of it
    footprint.py     a model's and a training's memory and FLOPs, by formula
    generation.py    Request, Reply, Sampling, Engine, generate(): the contract that engines/ carries out
    asking.py        a reply that cannot be used is asked again, then counted
    filters.py       is this one text worth keeping?  One predicate a rule, each with a reason
    rouge.py         ROUGE-L, and a pool of texts that tells near-duplicates
    wording.py       what a text looks like: its words, how varied, does it loop, does it refuse
    ranking.py       many texts for one prompt: who beats whom, may it be a pair, which is best
    best_of_n.py     candidates of a row: their rewards, which is the response, what n brings
    comparisons.py   replies of ranked configurations -> pairs, and the counts on the way
    agreement.py     how far two measurements of the same things agree
    toxicity.py      the rows of RealToxicityPrompts, and a scorer that needs no server
    intervals.py     how sure a number is: Wilson, bootstrap, and the one way to print both
    pages.py         the one way to a self-contained, escaped HTML page

judging/, what judges are asked, and what is read from their replies:
    judgments.py     CUT's judgments: their rows, prompts and replies
    criteria.py      weighted criteria, for rewards
    verdicts.py      a reply -> the grade from 1 to 5 that it ends in
    grades.py        a response graded by each of its rubrics, as the bench does
    bench.py         the bench's rows, the responses to them, and what grades say of models
    answers.py       questions, and several models' answers to them, matched
    pairs.py         two answers to a question compared, in both orders
    pair_verdicts.py a reply -> which of two answers is better, or a score of each
    judges.py        who compares: a model with a budget, a reward model, the longer answer
    self_test.py     a judge on pairs of which one knows the better answer
    winrates.py      what verdicts say of two models, and of the judge
    length_control.py  AlpacaEval 2's regression: what a judge would prefer at equal length
    anytime.py       an interval that holds however often one looks, so that one may stop
    ladder.py        Bradley-Terry: several models in one order

auditing/, what a preference file teaches beside preferences:
    pairs.py         its pairs, with what was said before them
    flags.py         a number with its interval, and when it is a flag
    shortcuts.py     what a model could go by in place of quality: length, place
    configurations.py  who beats whom: matrix, rank, circles
    duplicates.py    the same again, exactly, turned round or nearly
    contents.py      refusals, loops, little variety, benchmarks, what a filter would drop
    benches.py       the papers' benchmarks in their released forms, and which items a text holds

janus/, the data of Janus:
    preferences.py   dimension > subdimension > preference, and the sets of four that are drawn around this tree
    leaks.py         does a system message give its instruction away?
    rows.py          instructions and the files between the modes, and the published collection in its forms
    writers.py       what a model is asked in each mode, and the reading of its reply
    splits.py        the bench proven unseen in training; responses -> the sets that train.py learns
    measures.py      what the report shows of a collection
    ablation.py      a row under another system message, and what that costs

engines/, what runs models: `engine_from` and its flags in __init__.py;
    vllm.py  hf.py  openai.py  simulated.py  simulated_judge.py
    ray.py           replicas of an engine and of a reward model on a Ray cluster, whatever of it dies
    prompts.py       a request -> token ids, by the model's own tokenizer and chat template
    answers.py       whatever a server sends -> a reply
    schemas.py       values that follow a JSON schema, for the simulated writer
    decoding.py      a causal model in hand, ids in and ids out: shared prefix, batch, cache
    rows.py          rows in flight: caches that grow, rows that leave and join
    scoring.py       rewards of responses, journaled: in this process, by vLLM's server, simulated
    sampling.py      logits -> tokens
    vllm_policy.py   vLLM beside a policy in training, whose weights it is handed
    vllm_failures.py why vLLM's processes ended, in a line, and that none outlives a run
    vllm_sampling.py in vLLM's own processes: sampling on a CPU without sorting the vocabulary
    rehearsal.py     what stands in for engines and reward models in a plan, and times a few real rows
    perspective.py   Perspective's toxicity of texts, as an engine

training/, what imports torch to learn or to score:
    unpadding.py     a padded batch through a model at the cost of its distinct tokens
    batches.py       ids -> samples, collators, packing, micro-batches of like length
    logps.py         a model and a batch -> log-probabilities, no vocabulary-wide tensor held
    losses.py        the papers' equations, pure functions
    trainers.py      HF Trainer whose step functions call losses.py
    trainer_flags.py flags of HF Trainer that train.py does not spell out: read, and found to work or refused
    history.py       what a training run shows and leaves: bar, history.jsonl, history.png
    reward_model.py  load, score(texts)
    likelihoods.py   how likely a policy finds given responses
    references.py    DPO's reference log-probabilities, computed once
    encoded.py       ids of a set, made once and kept beside the run, mapped by all processes
    ranks.py         several processes: what the first makes for all, and that all see its folder
    checkpoints.py   checkpoints written beside the steps, in shards, and read by any number of processes
    saving.py        written, loaded again by a fresh process, and the same: one call for every script that saves
    checking.py      what that process asks, and how near the answers must be
    rehearsal.py     what a training would take: a few of its steps, or formulas
    limits.py        training that stops after a step, where a budget or hours say
    room.py          what fits where: weights on a card, over all cards, on the CPU
    ppo.py           PPO's and GRPO's equations, pure functions
    rewards.py       what reinforcement is after: reward models, functions, judges, with weights
    reward_specs.py  how a reward is named on the command line, and a function loaded
    reward_judges.py rewards that a judge's grades are
    rollouts.py      prompts -> replies of a policy in training, scored, and their micro-batches
    rl_models.py     policy, reference and values; temperature, FSDP2
    rl_build.py      these from the flags of train_rl.py
    rl_update.py     a step: measured once, advantages, epochs of mini-batches
    rl_monitor.py    what a run shows: numbers, warnings in words, the page of samples
    rl_state.py      checkpoints, and the rollouts of the step in hand
    benchmarks.py    what is asked of a policy whose next tokens are the answer: letters, true or false, choices
    cut_lines.py     CUT: rows with judgments -> lines -> batches; how much the judgment has to do with each token
    cut_trainer.py   CUT: the training step, and the Trainer that takes it
"""
