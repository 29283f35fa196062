interface Shape { readonly name: string; area(): number }
class Circle implements Shape {
    readonly name = "circle";
    constructor(private radius: number) {}
    area(): number { return Math.PI * this.radius ** 2; }
}
const largest = <T extends Shape>(shapes: T[]): T | undefined => shapes.sort((a, b) => b.area() - a.area())[0];
console.log(largest([new Circle(1), new Circle(2)])?.name);
