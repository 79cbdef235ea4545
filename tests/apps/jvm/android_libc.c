/* libc.so as Android's libraries know it, for the JNI library in ONNX Runtime's AAR: all that it needs of it, from this one. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define ANDROID(RESULT, NAME, PARAMETERS, ...)                       \
    RESULT NAME PARAMETERS;                                          \
    RESULT android_##NAME PARAMETERS { return NAME(__VA_ARGS__); }   \
    __asm__(".symver android_" #NAME "," #NAME "@LIBC");

ANDROID(void *, malloc, (size_t size), size)
ANDROID(void *, realloc, (void *old, size_t size), old, size)
ANDROID(void, free, (void *old), old)
ANDROID(void *, memcpy, (void *to, const void *from, size_t size), to, from, size)
ANDROID(size_t, strlen, (const char *text), text)
ANDROID(int, dlclose, (void *library), library)
ANDROID(void, __stack_chk_fail, (void))
ANDROID(void, __cxa_finalize, (void *library), library)
ANDROID(int, __cxa_atexit, (void (*function)(void *), void *argument, void *library), function, argument, library)
ANDROID(int, __register_atfork, (void (*a)(void), void (*b)(void), void (*c)(void), void *library), a, b, c, library)
