package android.content;

public abstract class Context {
    public native java.io.File getFilesDir();

    public native android.content.res.AssetManager getAssets();

    public final native String getString(int id);

    public final native String getString(int id, Object... values);
}
