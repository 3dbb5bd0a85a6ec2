"""The model that thinks: a backbone, the two learned markers and the mixing head."""

import torch
from torch import Tensor, nn

from .backbone import Attend, Backbone, Watch
from .cache import Cache
from .config import QuietConfig
from .lean import make_lean
from .linears import Kind, pack
from .mixing import MixingHead, mix
from .quantize import is_quantized, num_bytes
from .thoughts import END, START, Rows


class QuietModel(nn.Module):
    """A backbone that can think before it speaks.

    Without a `quiet` config it is the plain language model: `can_think` is False and no thought may be asked of it.

    Args:
        backbone: the language model.
        quiet: how it thinks; its token names have been resolved to the ids below.
        hidden_ids: ids that no text may contain and no step may choose: the markers' names in the vocabulary.
        stop_ids: ids at which a thought ends itself.
    """

    def __init__(
        self,
        backbone: Backbone,
        quiet: QuietConfig | None = None,
        hidden_ids: tuple[int, ...] = (),
        stop_ids: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.quiet = quiet
        self.stop_ids = frozenset(stop_ids)
        hidden = torch.tensor(
            [i for i in hidden_ids if i < backbone.vocab_size], device=backbone.device, dtype=torch.long
        )
        self.hidden_ids: Tensor
        self.register_buffer("hidden_ids", hidden, persistent=False)
        if quiet is not None:
            size, dtype = backbone.hidden_size, backbone.dtype
            self.start_embedding = nn.Parameter(torch.zeros(size, dtype=dtype))
            self.end_embedding = nn.Parameter(torch.zeros(size, dtype=dtype))
            self.mixing_head = MixingHead(size, quiet.mixing_layers, quiet.mixing_input).to(dtype)

    @property
    def can_think(self) -> bool:
        """It has markers and a mixing head."""
        return self.quiet is not None

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, as they are held now."""
        return num_bytes(self)

    def speed_up(self, kind: Kind = "float") -> None:
        """Lay the layers out for serving: the model can no longer be trained or saved. `kind` as in `linears.pack`.

        Layers that bitsandbytes holds stay as they are. Raises ValueError where they are to be rounded once more.
        """
        lm = self.backbone.lm
        if is_quantized(lm):
            if kind != "float":
                raise ValueError(
                    f"its layers are quantised by bitsandbytes already; {kind!r} is for a model that is not"
                )
            if lm.config.tie_word_embeddings:
                return  # a packed output layer would be a second copy of the embeddings, and memory is what counts here
        make_lean(self.backbone)
        pack(self, kind)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [..., H] of token ids, START and END."""
        embeds = self.backbone.embed(tokens.clamp(min=0))
        if not self.can_think:
            return embeds
        tokens = tokens.unsqueeze(-1)
        embeds = torch.where(tokens == START, self.start_embedding, embeds)
        return torch.where(tokens == END, self.end_embedding, embeds)

    def forward(self, tokens_BR: Tensor, positions_BR: Tensor, attend: Attend, watch: Watch | None = None) -> Tensor:
        """Hidden states [B, R, H] of rows that see what `attend` lets them; `watch` is shown every layer's."""
        return self.backbone(self.embed(tokens_BR), positions_BR, attend, watch)

    def run(self, rows: Rows, cache: Cache, watch: Watch | None = None) -> Tensor:
        """One forward over rows of any slots, through the cache: hidden states [N, H]; `watch` is shown every layer's."""
        device = self.backbone.device
        if not len(rows):  # a forward that failed behind this point is made good without reading anything twice
            return torch.zeros(0, self.backbone.hidden_size, dtype=self.backbone.dtype, device=device)
        tokens = torch.tensor([rows.tokens], device=device)
        positions = torch.tensor([rows.positions], device=device)
        return self(tokens, positions, cache.attend(rows), watch)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., V] in float32; the markers cannot be chosen."""
        logits = self.backbone.logits(hidden)
        return logits.index_fill_(-1, self.hidden_ids, float("-inf")) if len(self.hidden_ids) else logits

    def mix(self, base: Tensor, thought: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed hidden states [..., H] and the weight [...] of each thought."""
        weight = self.mixing_head(base, thought)
        return mix(base, thought, weight), weight
