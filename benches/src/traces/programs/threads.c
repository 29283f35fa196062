#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
static atomic_int count;
static void *work(void *unused) { atomic_fetch_add(&count, 1); return unused; }
int main(void) {
    pthread_t threads[4];
    for (int at = 0; at < 4; at++) pthread_create(&threads[at], NULL, work, NULL);
    for (int at = 0; at < 4; at++) pthread_join(threads[at], NULL);
    printf("%d\n", atomic_load(&count));
    return 0;
}
