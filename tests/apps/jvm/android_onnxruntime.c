/* libonnxruntime.so as the JNI library in ONNX Runtime's AAR asks for it, from the one of this Python, whose symbols have the
 * version of another release. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

const void *OrtGetApiBase(void) {
    void *library = dlopen(ONNXRUNTIME, RTLD_NOW);
    const void *(*get)(void) = library == NULL ? NULL : (const void *(*)(void))dlsym(library, "OrtGetApiBase");
    if (get == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        abort();
    }
    return get();
}

/* Two that are asked for by name and never called. */
void *OrtSessionOptionsAppendExecutionProvider_CPU(void) { abort(); }
void *OrtSessionOptionsAppendExecutionProvider_Nnapi(void) { abort(); }
