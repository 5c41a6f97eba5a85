"""gemedge export --format c: a quantized model in, a folder of C sources out."""

from pathlib import Path

from gemedge.cli import console
from gemedge.errors import about


def write(model: Path, output: Path | None, *, force: bool, as_json: bool, quiet: bool) -> None:
    """Write the sources of a .gemq file into a folder, all or none."""
    from gemedge import files, model_file
    from gemedge.capture.archive import open_bytes
    from gemedge.cli import known_code
    from gemedge.export import to_c
    from gemedge.export.folder import MODEL, Folder, compiled

    folder = output or model.with_name(f"{model.stem}_c")
    files.refuse_folder(folder, (*to_c.FILES, MODEL), force=force, inputs=(model,))
    with about(model):
        quantized = model_file.load(open_bytes(model))
        sources = to_c.to_c(quantized, model.stem)
    name, arena = to_c.symbol(model.stem), to_c.arena_size(quantized)
    sources |= {MODEL: model_file.save(quantized)}
    files.write_folder(folder, sources, force=force)
    known_code.remember(Folder(quantized, compiled(sources), name, arena).digest)
    sizes = {str(folder / file): len(content) for file, content in sources.items()}
    if as_json:
        console.print_json({"files": sizes, "format": "c", "symbol": name, "arena": arena})
    elif not quiet:
        rows = [("function", f"{name}_run"), ("layers", str(len(quantized.layers))), ("arena", f"{arena:,} bytes")]
        console.print_fields(rows + [("file", f"{path}, {size:,} bytes") for path, size in sizes.items()])
