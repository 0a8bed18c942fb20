"""Responses per second of `synthetic_feedback.py --mode rg`, beside the way the released code makes them.

ours       all prompts handed over together, stop strings, the few-shot header computed once
released   batches of 4, one after the other, no stop strings: every reply runs to its 384 tokens and is cut afterwards
           (vllm: the same engine, sampling with vLLM's own top-p; hf: transformers' own `generate`)

Both take the prompts of assets/seed_prompts.txt, in turn, after 3 HHH dialogues, on the same machine in the same run:

    python benchmarks/responses.py --backend vllm --model_name_or_path saved_models/SmolLM2-135M-Instruct
    python benchmarks/responses.py --backend hf --model_name_or_path saved_models/SmolLM2-135M-Instruct
"""

import time
from itertools import cycle, islice

from alignment.command_line import REPOSITORY, ArgumentParser, number, run
from alignment.engines import add_engine_arguments, engine_from
from alignment.engines.hf import HfEngine
from alignment.few_shot import REPLY_STOP, Demonstrations, Seeds, parse_reply
from alignment.generation import Request, Sampling, record_seed

RELEASED_BATCH = 4


def parse_args(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_name_or_path", required=True, help="folder or hub name")
    parser.add_argument("--num_prompts", type=number(int, 4), default=256, help="ours (default: 256)")
    parser.add_argument("--num_released", type=number(int, 4), default=16, help="the released way (default: 16)")
    parser.add_argument("--max_new_tokens", type=number(int, 1), default=384, help="default: 384, as the paper")
    parser.add_argument("--batch_size", type=number(int, 1), default=256, help="hf: rows together (default: 256)")
    add_engine_arguments(parser)
    return parser.parse_args(argv)


def main(args) -> None:
    demonstrations = Demonstrations.read(REPOSITORY / "assets" / "HHH_prompt.txt", 3)
    queries = Seeds.read(REPOSITORY / "assets" / "seed_prompts.txt", 1).queries
    asked = islice(cycle(queries), max(args.num_prompts, args.num_released))
    requests = [Request(demonstrations.format_prompt(query, 3), record_seed(0, i)) for i, query in enumerate(asked)]
    sampling = Sampling(max_tokens=args.max_new_tokens, top_p=0.9, stop=REPLY_STOP)
    unstopped = Sampling(max_tokens=args.max_new_tokens, top_p=0.9)
    engine = engine_from(args)
    for _ in engine.complete(requests[-4:], Sampling(max_tokens=4)):
        pass  # loads the model and warms it up

    ours = timed("ours", args.num_prompts, lambda: complete(engine, requests[: args.num_prompts], sampling))
    batch = released_hf(engine, unstopped) if isinstance(engine, HfEngine) else released_vllm(engine, unstopped)
    batches = [requests[at : at + RELEASED_BATCH] for at in range(0, args.num_released, RELEASED_BATCH)]
    released = timed("released way", args.num_released, lambda: [text for four in batches for text in batch(four)])
    print(f"ratio of responses per second: {ours / released:.1f}")


def timed(name: str, count: int, generate) -> float:
    """Responses per second, printed."""
    started = time.perf_counter()
    texts = generate()
    seconds = time.perf_counter() - started
    characters = sum(len(parse_reply(text)) for text in texts) / len(texts)
    print(f"{name:13} {count:4} responses of {characters:.0f} characters in {seconds:6.1f} s: {count / seconds:.3f} /s")
    return count / seconds


def complete(engine, requests, sampling) -> list[str]:
    return [reply.text for _, reply in engine.complete(requests, sampling)]


def released_vllm(engine, sampling):
    """A function from a batch of requests to texts, by vLLM's own generate on the same engine."""
    from vllm import SamplingParams

    def batch(requests) -> list[str]:
        shared = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
        params = [SamplingParams(seed=request.seed, **shared) for request in requests]
        outputs = engine._llm.generate([request.prompt for request in requests], params, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    return batch


def released_hf(engine, sampling):
    """A function from a batch of requests to texts, by transformers' own generate."""
    model, tokenizer = engine._model, engine.tokenizer
    model.set_attn_implementation("sdpa")
    tokenizer.padding_side = "left"

    def batch(requests) -> list[str]:
        inputs = tokenizer([request.prompt for request in requests], return_tensors="pt", padding=True)
        output = model.generate(
            **inputs.to(model.device),
            do_sample=True,
            max_new_tokens=sampling.max_tokens,
            top_p=sampling.top_p,
            temperature=sampling.temperature,
            top_k=0,
        )
        return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return batch


if __name__ == "__main__":
    run(parse_args, main)
