export async function* lines(source: AsyncIterable<string>): AsyncGenerator<string, number> {
    let count = 0;
    for await (const part of source) {
        for (const line of part.split("\n")) {
            count++;
            yield line;
        }
    }
    return count;
}
export const later = <T>(value: T): Promise<T> => new Promise((resolve) => setTimeout(() => resolve(value), 1));
