#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
int main(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct pollfd one = { .fd = fd, .events = POLLIN };
    return poll(&one, 1, 0) < 0 ? errno : close(fd);
}
