"""Whatever touches the bytes of an image. It runs in worker processes, where a decoder may crash or hang."""
