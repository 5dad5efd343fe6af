"""Answers over HTTP: `deit serve`, dynamic batching, limits, and routes (starlette, uvicorn)."""
