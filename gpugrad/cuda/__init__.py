"""From CUDA sources to machine code: find, inline, compile with NVRTC (no GPU needed), cache."""
