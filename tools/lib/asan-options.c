/* Linked into out/node-asan, for when ASAN_OPTIONS says nothing else. */
const char* __asan_default_options(void);

const char* __asan_default_options(void) {
  /* Node leaves much for the end of the process to free. V8's collector reads the real stack. */
  return "detect_leaks=0:detect_stack_use_after_return=0";
}
