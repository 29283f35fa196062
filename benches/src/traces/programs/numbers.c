#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int order(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }
int main(void) {
    double values[100];
    for (int at = 0; at < 100; at++) values[at] = sin(at) * sqrt(at);
    qsort(values, 100, sizeof *values, order);
    printf("%f %f\n", values[0], values[99]);
    return 0;
}
