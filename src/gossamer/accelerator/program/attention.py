"""Attention: heads of a group share keys and values, which the outer memory keeps for later programs."""

from collections.abc import Callable, Iterator

from gossamer.accelerator.program.draft import View
from gossamer.accelerator.program.images import AttentionImages
from gossamer.accelerator.program.products import Work, load_rows, product
from gossamer.dataflow.engine import SCORE_TILES
from gossamer.dataflow.schedule import Gemm, Load, Mode, Pattern, Store

TOKEN, POSITION = 1, 2
"""Registers of a decode program."""


def self_attention(work: Work, name: str, h: View, x: View, m: int, images: AttentionImages, start: int) -> View:
    """`x` plus attention of rows `h` (8 bits), positions `start` …; bidirectional, or causal over what came before."""
    _keep(work, f"{name}.value", h, m, images, start)
    rotary = _rotary(work, name, images, m, start)
    key = _projected(work, f"{name}.key", h, m, images, False, rotary)
    query = _projected(work, f"{name}.query", h, m, images, True, rotary)
    mixed = work.draft.tensor(f"{name} mixed", m, images.attention.heads * images.head)
    chunks = images.head // work.engine.depth

    def fetch(g: int) -> tuple[View, View]:
        if images.cache.keys:
            _store_keys(work, key, g, m, images, start)
        keys = key.chunk(g * chunks) if start == 0 else _load_keys(work, name, images, g, start + m)
        return keys, _load_values(work, name, images, g, start + m)

    for g, keys, values in _fetched(work, images, fetch):
        _group(work, images, g, query, keys, values, mixed, m, start, start + m)
    return _added(work, name, mixed, x, m, images)


def decode_attention(work: Work, name: str, h: View, x: View, images: AttentionImages, context: int) -> View:
    """`x` plus attention of one row at R[POSITION] over what the cache holds, itself included."""
    _keep(work, f"{name}.value", h, 1, images, 0, POSITION)
    rotary = _rotary(work, name, images, 1, 0, POSITION)
    key = _projected(work, f"{name}.key", h, 1, images, False, rotary)
    for g in range(images.attention.kv_heads):
        _store_keys(work, key, g, 1, images, 0, POSITION)
    query = _projected(work, f"{name}.query", h, 1, images, True, rotary)
    mixed = work.draft.tensor(f"{name} mixed", 1, images.attention.heads * images.head)

    def fetch(g: int) -> tuple[View, View]:
        keys = _load_keys(work, name, images, g, context, POSITION)
        return keys, _load_values(work, name, images, g, context, POSITION)

    for g, keys, values in _fetched(work, images, fetch):
        _group(work, images, g, query, keys, values, mixed, 1, 0, context, POSITION)
    return _added(work, name, mixed, x, 1, images)


def cross_attention(
    work: Work, name: str, h: View, x: View, m: int, images: AttentionImages, memory: View | None
) -> View:
    """`x` plus attention of rows `h` over another stack's 8-bit rows `memory`; none: over the keys and values kept."""
    rows = images.cache.rows
    key = None
    if memory is not None:
        _keep(work, f"{name}.value", memory, rows, images, 0)
        key = _projected(work, f"{name}.key", memory, rows, images, False, None)
    query = _projected(work, f"{name}.query", h, m, images, True, None)
    mixed = work.draft.tensor(f"{name} mixed", m, images.attention.heads * images.head)
    chunks = images.head // work.engine.depth

    def fetch(g: int) -> tuple[View, View]:
        if key is not None:
            _store_keys(work, key, g, rows, images, 0)
        keys = _load_keys(work, name, images, g, rows) if key is None else key.chunk(g * chunks)
        return keys, _load_values(work, name, images, g, rows)

    for g, keys, values in _fetched(work, images, fetch):
        _group(work, images, g, query, keys, values, mixed, m, 0, rows)
    return _added(work, name, mixed, x, m, images)


def _fetched(
    work: Work, images: AttentionImages, fetch: Callable[[int], tuple[View, View]]
) -> Iterator[tuple[int, View, View]]:
    """Each key-value head with its keys and values, which are on their way while the head before is worked on."""
    count = images.attention.kv_heads
    coming = fetch(0)
    for g in range(count):
        keys, values = coming
        if work.ahead and g + 1 < count:
            coming = fetch(g + 1)
        yield g, keys, values
        if not work.ahead and g + 1 < count:
            coming = fetch(g + 1)


def _rotary(work: Work, name: str, images: AttentionImages, m: int, start: int, register: int = 0) -> View | None:
    """Rows of the rotary table for the positions at hand, one head wide."""
    if images.rotary is None:
        return None
    table = work.draft.tensor(f"{name} rotary", m, images.head)
    load_rows(work, images.rotary, start, m, table, register)
    return table


def _projected(
    work: Work, name: str, h: View, m: int, images: AttentionImages, query: bool, rotary: View | None
) -> View:
    """Queries or keys of all heads, turned by their position where there is a rotary table."""
    heads = images.attention.heads if query else images.attention.kv_heads
    out = work.draft.tensor(name, m, heads * images.head)
    matrix = images.query if query else images.key
    if rotary is None:
        product(work, h, m, matrix, Mode.INT8, out)
    else:
        period = images.head // work.engine.depth
        shift = images.attention.rotary_shift
        product(work, h, m, matrix, Mode.ROTARY, out, images.head, aux=rotary, aux_period=period, shift=shift)
    return out


def _keep(work: Work, name: str, h: View, m: int, images: AttentionImages, start: int, register: int = 0) -> None:
    """Values, row by row, into the outer memory, from where they come back transposed."""
    engine, cache, heads = work.engine, images.cache, images.attention.kv_heads
    out = work.draft.tensor(name, m, heads * images.head)
    product(work, h, m, images.value, Mode.INT8, out)
    # heads that fill bus words lie side by side as they do here: one store takes all
    parts = 1 if cache.head == images.head else heads
    chunks = heads // parts * images.head // engine.depth
    for part in range(parts):
        work.draft.emit(
            Store,
            address=cache.values + part * cache.head,
            source=out.chunk(part * chunks),
            count=m,
            pattern=Pattern.ROWS,
            chunks=chunks,
            row=start,
            block_pitch=engine.line_rows * heads * cache.head,
            row_pitch=heads * cache.head,
            chunk_pitch=engine.depth,
            register=register,
        )


def _store_keys(work: Work, key: View, g: int, m: int, images: AttentionImages, start: int, register: int = 0) -> None:
    """Keys of a head into their line image."""
    engine = work.engine
    chunks = images.head // engine.depth
    work.draft.emit(
        Store,
        address=images.cache.keys[g],
        source=key.chunk(g * chunks),
        count=m,
        pattern=Pattern.ROWS,
        chunks=chunks,
        row=start,
        block_pitch=chunks * engine.line_bytes,
        row_pitch=engine.depth,
        chunk_pitch=engine.line_bytes,
        register=register,
    )


def _load_keys(work: Work, name: str, images: AttentionImages, g: int, rows: int, register: int = 0) -> View:
    """Keys of a head: `rows` of them, or, with a register, as many as its value says and one."""
    engine = work.engine
    keys = work.draft.tensor(f"{name} keys", rows, images.head)
    words = images.head * engine.line_rows // engine.bus_bytes
    blocks = -(-rows // engine.line_rows)
    count, step = (0, words) if register else (blocks * words, 0)
    work.draft.emit(Load, address=images.cache.keys[g], to=keys, count=count, count_step=step, register=register)
    return keys


def _load_values(work: Work, name: str, images: AttentionImages, g: int, rows: int, register: int = 0) -> View:
    """Values of a head, transposed: a row for each column of the head."""
    engine, cache = work.engine, images.cache
    values = work.draft.tensor(f"{name} values", cache.head, rows)
    work.draft.emit(
        Load,
        address=cache.values + g * cache.head,
        to=values,
        count=1 if register else rows,
        pattern=Pattern.TRANSPOSED,
        chunks=cache.head // engine.depth,
        row_pitch=images.attention.kv_heads * cache.head,
        register=register,
        add_count=bool(register),
    )
    return values


def _group(
    work: Work,
    images: AttentionImages,
    g: int,
    query: View,
    keys: View,
    values: View,
    mixed: View,
    m: int,
    start: int,
    length: int,
    register: int = 0,
) -> None:
    """The query heads of key-value head `g`, as many row tiles at once as the engine holds; causal ones one after the
    other, up to the diagonal only."""
    engine, draft, given = work.engine, work.draft, images.attention
    chunks = images.head // engine.depth
    shared = given.heads // given.kv_heads
    tiles = 1 if given.causal else max(1, min(SCORE_TILES, engine.chunks // -(-length // engine.depth)))
    for head in range(g * shared, (g + 1) * shared):
        for row in range(0, m, tiles * engine.rows):
            count = min(tiles * engine.rows, m - row)
            seen = start + row + count if given.causal and not register else length
            scores = draft.tensor("scores", count, seen)
            moving = bool(register)
            columns = 1 if moving else seen
            draft.emit(
                Gemm,
                a=query.chunk(head * chunks).at_row(row),
                w=keys,
                out=scores,
                m=count,
                n=columns,
                k=images.head,
                mode=Mode.SCORE,
                multiplier=given.score_multiplier,
                shift=given.score_shift,
                limit=start + row + 1 if given.causal else columns,
                causal=given.causal and not moving,
                register=register,
                add_n=moving,
                add_limit=moving,
            )
            draft.emit(
                Gemm,
                a=scores,
                w=values,
                out=mixed.chunk(head * chunks).at_row(row),
                m=count,
                n=images.head,
                k=columns,
                mode=Mode.VALUE,
                shift=given.gain,
                register=register,
                add_k=moving,
            )


def _added(work: Work, name: str, mixed: View, x: View, m: int, images: AttentionImages) -> View:
    """The output projection added to the residual stream."""
    out = work.draft.tensor(f"{name} out", m, images.output.n, 16)
    product(work, mixed, m, images.output, Mode.INT16, out, aux=x)
    return out
