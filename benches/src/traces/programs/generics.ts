type Message<K extends string, V> = { kind: K; value: V };
type Messages = Message<"open", string> | Message<"close", number>;
class Bus<E extends Message<string, unknown>> {
    private handlers = new Map<E["kind"], ((value: never) => void)[]>();
    on<K extends E["kind"]>(kind: K, handler: (value: Extract<E, { kind: K }>["value"]) => void): void {
        const list = this.handlers.get(kind) ?? [];
        this.handlers.set(kind, [...list, handler as (value: never) => void]);
    }
}
const bus = new Bus<Messages>();
bus.on("open", (path) => console.log(path.length));
