"""Deduplication of 10,000 prompts: `alignment.rouge.Pool` beside the package rouge, as ALMoST's released code uses it.

    python benchmarks/deduplication.py          # about 15 seconds on one core

The prompts are synthetic questions drawn from the seed; a fifth are an earlier one with some words changed. A prompt is
dropped if its highest ROUGE-L F against the prompts kept so far is 0.5 or more. Ours does this for all prompts. The
package takes more than an hour, so it scores a uniform sample of the prompts, each against all that ours kept before
it, and its time for the whole is the time of a comparison in this sample times the comparisons of the whole run. Times
are processor seconds of one core. Ours include tokenising; the package is handed tokenised texts.
Exits with 1 if the package decides otherwise, or finds another highest score, for any prompt of the sample.
"""

import argparse
import random
import sys
import time

from alignment.rouge import Pool, tokenize

THRESHOLD = 0.5

# A question is drawn from this grammar: {name} becomes one of the choices between the bars.
GRAMMAR = {
    "question": """How {do} {someone} {act} {when}?|{do} {someone} {act}, or rather {act}?|Explain why {fact} {when}.|
        What happens if {fact} {when} and {fact}?|I want to {act}, but {fact}. What now?|
        {genre} in which {fact} {when}.|Which {noun} helps {someone} {act}, {adjective} or {adjective}?|
        When {fact}, where {do} {someone} {act}?|
        Best way to {act} {when}, if {fact}?|Is it legal to {act} {when}?|List {number} reasons to {act} {when}|
        Compare {thing} {when} with {thing} {when}.|Who was first to {act} {when}, and why?|{fact}. {do} I {act}?|
        {someone} asked me to {act} {when}. Any tips?|Did people in {place} ever {act} {when}?|Suppose {fact} {when}.
        How much would {thing} cost?|Teach {someone} to {act} {when}!|Why {act} {when}?|{fact}, so who should {act}?|
        Translate this into French: {fact} {when}.|Are there laws against {thing} {when}, or may {someone} {act}?""",
    "do": "can|could|should|would|do|will|must|may",
    "genre": "Write a poem|Tell me a story|Draft an email|Make up jokes|Imagine dialogues|Compose songs|Invent titles",
    "act": "{verb} {thing} and {verb} {thing}|{verb} {thing} with {thing}|{verb} {thing} from {place} near {thing}|"
    "{verb}, {verb} and {verb} {thing}|{verb} {thing} without {thing}|{verb} {thing} like {someone}|{verb} {thing}",
    "thing": "my {noun}|{adjective} {noun}s|the {noun} {noun}|{number} {adjective} {noun}s|{someone}'s {noun}|{noun}s|"
    "this {adjective} {noun}|every {noun}|{adjective}, {adjective} {noun}s|{noun} {noun}s",
    "when": "in {place}|{number} weeks after {thing}|before {someone} {verb}s {thing}|during {noun} season|"
    "while {noun}s are {adjective}|since {fact}|behind {thing}|despite {adjective} {noun}s|for {thing}|until {fact}",
    "fact": "{thing} smelled {adjective}|{someone} {verb}s {thing}|{thing} became {adjective} in {place}|"
    "{someone} lost {number} {noun}s|nobody {verb}s {thing}|{thing} always seemed {adjective}|{place} bans {thing}|"
    "{someone} met {someone} near {thing}|{thing} fell on {thing}|{someone} hates {thing}|rain ruined {thing}",
    "someone": """my boss|uncle Bob|a nurse|the mayor|our neighbour|grandma|some student|Anna|the pilot|one farmer|
        Maria|a tourist|my dentist|Omar|her twin|his lawyer|an astronaut|my landlord|Mr. Chen|their engineer""",
    "number": "two|three|five|seven|ten|12|20|48|60|100|2.5|1,000",
    "place": """Norway|Brazil|Texas|Tokyo|Kenya|Berlin|Peru|Canada|Iceland|Mumbai|Cairo|Ireland|Vietnam|Chicago|Rome|
        Greece|Alaska|Paris|Chile|Seoul|Morocco|Oregon|Nepal|Cuba|Finland|Sydney|Quebec|Vienna|Ghana|Hawaii""",
    "verb": """clean|repair|choose|paint|build|store|sell|plant|cook|design|organize|replace|measure|protect|ship|
        admire|photograph|borrow|compare|decorate|finance|insure|inspect|install|knit|label|lift|list|maintain|mend|mix|
        mount|move|name|order|pack|shine|promote|describe|recycle|refund|rent|restore|review|sew|sharpen|sketch|soften|
        stain|test|trade|translate|transport|trim|tune|upgrade|rinse|weigh""",
    "adjective": """old|cheap|wooden|small|vintage|heavy|broken|organic|waterproof|noisy|modern|rusty|spicy|digital|
        blue|portable|fragile|giant|handmade|frozen|leather|tropical|solar|plastic|silk|strange|medieval|magnetic|
        wireless|ceramic|folding|crooked|sweet|bright|damp|quiet|round|sticky|yellow|hollow""",
    "noun": """bicycle|sofa|garden|guitar|kitchen|laptop|resume|website|carpet|piano|camera|tent|novel|wedding|boat|dog|
        cat|omelette|mortgage|passport|podcast|fence|chimney|quilt|violin|greenhouse|engine|tractor|spreadsheet|logo|
        sweater|aquarium|telescope|trumpet|treehouse|motorcycle|curtain|staircase|contract|recipe|poem|drone|suitcase|
        mattress|lamp|radiator|cheesecake|dumpling|kayak|sculpture|microscope|database|newsletter|playlist|invoice|
        backpack|typewriter|beehive|hammock|necklace|orchard|puppet|roof|sidewalk|teapot|umbrella|vaccine|wardrobe|
        zipper|almanac|mill|cello|dishwasher|elevator|festival|gazebo|magnet|igloo|jacket|kettle|lawn|mirror|oven|
        notebook|parachute|quiz|rug|saddle|tattoo|uniform|vineyard|windmill|yacht|zoo|planet|enzyme|river|budget""",
}
CHOICES = {name: [" ".join(choice.split()) for choice in text.split("|")] for name, text in GRAMMAR.items()}


def draw(rng: random.Random, text: str = "{question}") -> str:
    """Replace each {name} by a choice, until none is left."""
    while "{" in text:
        before, _, rest = text.partition("{")
        name, _, after = rest.partition("}")
        text = before + rng.choice(CHOICES[name]) + after
    return text


def reword(rng: random.Random, question: str) -> str:
    """The question with up to half of its words exchanged for nouns."""
    words = question.split()
    for place in rng.sample(range(len(words)), rng.randint(0, len(words) // 2)):
        words[place] = rng.choice(CHOICES["noun"])
    return " ".join(words)


def synthetic_prompts(number: int, rng: random.Random) -> list[str]:
    prompts: list[str] = []
    for _ in range(number):
        again = prompts and rng.random() < 0.2
        prompts.append(reword(rng, rng.choice(prompts)) if again else draw(rng))
    return prompts


def deduplicate(prompts: list[str]) -> list[int]:
    """Indices of the prompts that are kept."""
    pool = Pool(threshold=THRESHOLD)
    kept = []
    for index, prompt in enumerate(prompts):
        if not pool.is_duplicate(prompt):
            pool.add(prompt)
            kept.append(index)
    return kept


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_prompts", type=int, default=10_000, help="prompts to deduplicate (default 10000)")
    parser.add_argument("--num_checked", type=int, default=20, help="prompts that the package scores too (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and of the sample (default 0)")
    args = parser.parse_args(argv)
    if not 0 < args.num_checked < args.num_prompts:
        parser.error("--num_checked must be above 0 and below --num_prompts")
    return args


def main(args: argparse.Namespace) -> None:
    from rouge import Rouge

    rng = random.Random(args.seed)
    prompts = synthetic_prompts(args.num_prompts, rng)
    tokenize("load the tokenizer before the clock starts")

    start = time.process_time()
    kept = deduplicate(prompts)
    ours = time.process_time() - start
    comparisons = sum(args.num_prompts - 1 - index for index in kept)  # each kept prompt meets all later ones
    print(f"{len(prompts)} prompts, {len(kept)} kept, {comparisons} comparisons of a prompt with one kept before it")
    print(f"alignment.rouge, all of them: {ours:.2f} s")

    package = Rouge(metrics=["rouge-l"])
    texts = [" ".join(tokenize(prompt)) for prompt in prompts]
    kept_set = set(kept)
    seconds, scored, dropped, wrong = 0.0, 0, 0, 0
    for index in rng.sample(range(1, args.num_prompts), args.num_checked):
        before = [other for other in kept if other < index]
        start = time.process_time()
        highest = max(package.get_scores(texts[index], texts[other])[0]["rouge-l"]["f"] for other in before)
        seconds += time.process_time() - start
        scored += len(before)
        dropped += highest >= THRESHOLD
        nearest = Pool(prompts[other] for other in before).nearest(prompts[index])
        wrong += (highest < THRESHOLD) != (index in kept_set) or highest != (nearest.score if nearest else 0.0)

    theirs = seconds / scored * comparisons
    print(f"package rouge, {scored} comparisons: {seconds:.2f} s ({args.num_checked} prompts, {dropped} dropped)")
    print(f"package rouge, extrapolated to all {comparisons} comparisons: {theirs:.0f} s = {theirs / 3600:.1f} h")
    print(f"ratio: {theirs / ours:.0f}")
    print(f"other decision or highest score: {wrong} of {args.num_checked}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(parse_args())
