/* The tests of text with buffers that grow by exactly what is asked for, so
 * that every append moves the bytes. */
#define DIMS_TEST_TINY_BUF
#include "text.h"
