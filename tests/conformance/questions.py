"""What the bundled checkpoint is asked here, and what it says at temperature 0."""

MODEL = "quiet-small"
QUICK, DEEP = "quiet-depth-0", "quiet-depth-12"  # presets of the server that `conftest.py` starts

STORY = (
    "A dial is at 2. It goes up 4 on Monday. It flips over on Tuesday. It doubles on Wednesday. Where is the dial now?"
)
PROMPT = f"Question: {STORY}\nAnswer:"
ANSWER = " 6"  # right: 2, 6, 3, 6
BLURTED = " 4"  # wrong: what the model says when it may not think

SWAPS = (
    "Anna has the ball. Ben, Carl, Dora, Emma and Fred have nothing. Anna and Ben swap on Monday. Who has the ball now?"
)
HOLDER = " Ben"
