"""llama.cpp by its C API: the library, and a GGUF that it runs."""
