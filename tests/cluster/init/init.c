// The first process of a node and of each pod: does nothing but bury those that nobody else waits for, and keeps the
// namespaces that it was started in. Ends when told to; what runs in its process namespace ends with it.
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) {
    (void)signal;
    _exit(0);
}

static void bury(int signal) {
    (void)signal;
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
}

int main(void) {
    struct sigaction ended = {.sa_handler = end};
    struct sigaction buried = {.sa_handler = bury, .sa_flags = SA_NOCLDSTOP};
    if (sigaction(SIGINT, &ended, NULL) < 0 || sigaction(SIGTERM, &ended, NULL) < 0 ||
        sigaction(SIGCHLD, &buried, NULL) < 0) {
        return EXIT_FAILURE;
    }
    for (;;) {
        pause();
    }
}
