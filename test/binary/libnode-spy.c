// Preloaded into a node executable: says which functions of libnode.so the process enters, and when.
//
// A breakpoint instruction is put over the first bytes of each function that LIBNODE_SPY_FUNCTIONS lists (a file of
// hexadecimal offsets into libnode, in ascending order). The first time that one is reached it is taken away again and
// a line "PHASE OFFSET" is appended to LIBNODE_SPY_LOG, the phase being "load" before main(), "run", or "exit".

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)
typedef uint8_t code_t;
static const code_t kTrap = 0xCC;
#define TRAP_LENGTH 1  // The program counter is behind the instruction.
#define PC(context) ((context)->uc_mcontext.gregs[REG_RIP])
#elif defined(__aarch64__)
typedef uint32_t code_t;
static const code_t kTrap = 0xD4200000;
#define TRAP_LENGTH 0
#define PC(context) ((context)->uc_mcontext.pc)
#endif

static uintptr_t base;
static uintptr_t* offsets;
static code_t* originals;
static size_t count;
static int log_fd = -1;
static const char* volatile phase = "load";

static void Die(const char* what) {
  dprintf(2, "libnode-spy: %s\n", what);
  _exit(99);
}

static int FindLibnode(struct dl_phdr_info* info, size_t size, void* data) {
  if (strstr(info->dlpi_name, "/libnode.so.") == NULL) return 0;
  base = info->dlpi_addr;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr)* segment = &info->dlpi_phdr[i];
    if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_X)) continue;
    uintptr_t start = (base + segment->p_vaddr) & ~(uintptr_t)(getpagesize() - 1);
    uintptr_t end = base + segment->p_vaddr + segment->p_memsz;
    if (mprotect((void*)start, end - start, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) Die("mprotect failed");
  }
  return 1;
}

static void Write(uintptr_t address, code_t code) {
  *(code_t*)address = code;
  __builtin___clear_cache((char*)address, (char*)address + sizeof(code));
}

static void OnTrap(int signal, siginfo_t* info, void* context) {
  uintptr_t pc = PC((ucontext_t*)context) - TRAP_LENGTH;
  size_t low = 0, high = count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (offsets[middle] < pc - base) low = middle + 1; else high = middle;
  }
  if (low == count || offsets[low] != pc - base) {
    static const struct sigaction kDefault = { .sa_handler = SIG_DFL };
    int (*real)(int, const struct sigaction*, struct sigaction*) = dlsym(RTLD_NEXT, "sigaction");
    real(SIGTRAP, &kDefault, NULL);
    return;
  }
  Write(pc, originals[low]);
  PC((ucontext_t*)context) = pc;
  char line[64];
  int length = snprintf(line, sizeof(line), "%s %zx\n", phase, (size_t)offsets[low]);
  if (write(log_fd, line, length) != length) Die("cannot write the log");
}

// Node sets every signal back to its default when it starts.
int sigaction(int signal, const struct sigaction* action, struct sigaction* old) {
  static int (*real)(int, const struct sigaction*, struct sigaction*);
  if (real == NULL) real = dlsym(RTLD_NEXT, "sigaction");
  if (signal == SIGTRAP) return 0;
  return real(signal, action, old);
}

static void OnExit(void) { phase = "exit"; }

static int (*real_main)(int, char**, char**);

static int Main(int argc, char** argv, char** env) {
  // Handlers run in reverse: this one after those of the program, before the destructors of what was made at load time.
  atexit(OnExit);
  phase = "run";
  return real_main(argc, argv, env);
}

int __libc_start_main(int (*main)(int, char**, char**), int argc, char** argv, void (*init)(void), void (*fini)(void),
                      void (*rtld_fini)(void), void* stack_end) {
  __typeof(&__libc_start_main) real = dlsym(RTLD_NEXT, "__libc_start_main");
  real_main = main;
  return real(Main, argc, argv, init, fini, rtld_fini, stack_end);
}

static const char* Get(char** env, const char* name) {
  for (; *env != NULL; env++)
    if (strncmp(*env, name, strlen(name)) == 0) return *env + strlen(name);
  return NULL;
}

// Linked with -z initfirst: before the initialisers of libnode, and of libc, whose getenv does not work yet.
__attribute__((constructor)) static void Start(int argc, char** argv, char** env) {
  const char* list = Get(env, "LIBNODE_SPY_FUNCTIONS=");
  const char* log = Get(env, "LIBNODE_SPY_LOG=");
  if (list == NULL || log == NULL) Die("LIBNODE_SPY_FUNCTIONS and LIBNODE_SPY_LOG are not set");
  dl_iterate_phdr(FindLibnode, NULL);
  if (base == 0) return;  // A child that is not a node.

  int fd = open(list, O_RDONLY | O_CLOEXEC);
  off_t size = lseek(fd, 0, SEEK_END);
  char* text = fd < 0 ? MAP_FAILED : mmap(NULL, size + 1, PROT_READ, MAP_PRIVATE, fd, 0);
  log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (text == MAP_FAILED || log_fd < 0) Die("cannot open the list of functions or the log");
  offsets = malloc(size * sizeof(*offsets));
  originals = malloc(size * sizeof(*originals));
  for (char* at = text; at < text + size; count++) {
    offsets[count] = strtoull(at, &at, 16);
    if (count > 0 && offsets[count] <= offsets[count - 1]) Die("the list of functions is not in order");
    at++;
  }

  struct sigaction action = { .sa_sigaction = OnTrap, .sa_flags = SA_SIGINFO | SA_NODEFER };
  int (*real)(int, const struct sigaction*, struct sigaction*) = dlsym(RTLD_NEXT, "sigaction");
  if (real(SIGTRAP, &action, NULL) != 0) Die("sigaction failed");
  for (size_t i = 0; i < count; i++) {
    originals[i] = *(code_t*)(base + offsets[i]);
    Write(base + offsets[i], kTrap);
  }
}
