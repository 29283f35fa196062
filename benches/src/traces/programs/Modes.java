import java.io.*;
import java.net.*;
import java.net.http.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.security.MessageDigest;
import java.time.*;
import java.time.format.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.regex.Pattern;
import java.util.stream.*;
import java.util.zip.*;

public class Modes {
    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "words" -> words();
            case "time" -> time();
            case "digest" -> digest();
            case "zip" -> zip();
            case "server" -> server();
            default -> throw new IllegalArgumentException(args[0]);
        }
    }

    static void words() {
        var words = Pattern.compile("\\W+").splitAsStream("a launch of a program is a walk through its files");
        Map<String, Long> counts = words.collect(Collectors.groupingBy(word -> word, TreeMap::new, Collectors.counting()));
        System.out.println(counts);
    }

    static void time() {
        var format = DateTimeFormatter.ofLocalizedDateTime(FormatStyle.FULL).withLocale(Locale.GERMANY);
        System.out.println(ZonedDateTime.of(2026, 3, 1, 12, 0, 0, 0, ZoneId.of("Europe/Berlin")).format(format));
        System.out.println(Duration.ofMillis(1500) + " " + ChronoLocalDateOf());
    }

    static String ChronoLocalDateOf() {
        return java.time.chrono.JapaneseDate.of(2026, 3, 1).toString();
    }

    static void digest() throws Exception {
        for (String name : List.of("SHA-256", "SHA3-256", "MD5")) {
            byte[] sum = MessageDigest.getInstance(name).digest("launch".getBytes(StandardCharsets.UTF_8));
            System.out.println(name + " " + HexFormat.of().formatHex(sum));
        }
        var generator = javax.crypto.KeyGenerator.getInstance("AES");
        generator.init(128);
        var cipher = javax.crypto.Cipher.getInstance("AES/GCM/NoPadding");
        cipher.init(javax.crypto.Cipher.ENCRYPT_MODE, generator.generateKey());
        System.out.println(cipher.doFinal(new byte[100]).length);
    }

    static void zip() throws Exception {
        Path file = Files.createTempFile("modes", ".zip");
        try (var out = new ZipOutputStream(Files.newOutputStream(file))) {
            for (int at = 0; at < 20; at++) {
                out.putNextEntry(new ZipEntry("entry" + at));
                out.write(("line " + at + "\n").repeat(1000).getBytes(StandardCharsets.UTF_8));
            }
        }
        try (var in = new ZipFile(file.toFile()); var lines = new BufferedReader(new InputStreamReader(in.getInputStream(in.getEntry("entry7"))))) {
            System.out.println(lines.lines().parallel().mapToInt(String::length).sum());
        }
        Files.delete(file);
    }

    static void server() throws Exception {
        try (var listener = new ServerSocket(0, 10, InetAddress.getLoopbackAddress())) {
            var pool = Executors.newFixedThreadPool(4);
            var answers = new ArrayList<Future<String>>();
            for (int at = 0; at < 4; at++) {
                answers.add(pool.submit(() -> {
                    try (var socket = new Socket(listener.getInetAddress(), listener.getLocalPort())) {
                        return new String(socket.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
                    }
                }));
            }
            for (int at = 0; at < 4; at++) {
                try (var socket = listener.accept()) {
                    socket.getOutputStream().write(("hello " + at).getBytes(StandardCharsets.UTF_8));
                }
            }
            for (var answer : answers) {
                System.out.println(answer.get());
            }
            pool.shutdown();
        }
    }
}
