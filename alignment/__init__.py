"""What the scripts are made of. Flat; the listing below is the map.

Text half, which imports neither torch nor vllm:
    runs.py         command line, one-line errors, run cards, progress
    records.py      a row of each file: read and checked at the door, written whole
    prompts.py      text -> prompt, and reply -> text; format and parse are neighbours
    generation.py   prompts -> texts: vllm | hf | openai | simulated, behind one function
    journal.py      finished requests on disk: crash, resume, exactly once
    rouge.py        ROUGE-L, and a pool of texts that tells near-duplicates
    filters.py      is this one text worth keeping?  One predicate a rule, each with a reason
    ranking.py      many texts for one prompt: who beats whom, may it be a pair

Tensor half, which imports torch and never vllm:
    decoding.py     the hf engine: batched sampling with a shared prefix
"""
